"""DeepSeek-OCR in Roundhouse, served by vLLM. Nothing is imported here: the app reads only entry points."""
