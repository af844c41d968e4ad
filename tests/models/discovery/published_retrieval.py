"""Embedding models, rerankers, classifiers and everything that is not text, as published; and half-copied folders."""

from __future__ import annotations

from typing import Any

from models.types import Availability, Method, ModelOverrides, Task
from tests.models.discovery.folders import Content, Row
from tests.models.discovery.published_chat import CHATML, GB, PLAIN, TOKENIZER, chat, sharded

INCOMPLETE, UNUSABLE = Availability.INCOMPLETE, Availability.UNUSABLE
ST = "sentence_transformers.models."
POOLED: list[Any] = [
    {"idx": 0, "name": "0", "path": "", "type": ST + "Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": ST + "Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": ST + "Normalize"},
]
ROUTER: list[Any] = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router.Router"}]
SPARSE = "sentence_transformers.sparse_encoder.models."
OPENSEARCH: dict[str, Any] = {
    "modules.json": ROUTER,
    "config_sentence_transformers.json": {"model_type": "SparseEncoder"},
    "router_config.json": {
        "types": {
            "query_0_SparseStaticEmbedding": SPARSE + "SparseStaticEmbedding.SparseStaticEmbedding",
            "": SPARSE + "MLMTransformer.MLMTransformer",
            "document_1_SpladePooling": SPARSE + "SpladePooling.SpladePooling",
        },
        "structure": {"query": ["query_0_SparseStaticEmbedding"], "document": ["", "document_1_SpladePooling"]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    },
}
JINA_IMPL = "jinaai/xlm-roberta-flash-implementation--"
NOMIC = "nomic-ai/nomic-bert-2048--"
NEW = "Alibaba-NLP/new-impl--"


def encoder(architecture: str, model_type: str, size: int = GB, **config: Any) -> dict[str, Content]:
    """An encoder with tokenizer and weights, without sentence-transformers' files."""
    return {
        "config.json": {"architectures": [architecture], "model_type": model_type, "torch_dtype": "float32", **config},
        "tokenizer_config.json": {"model_max_length": 512},
        **TOKENIZER,
        "model.safetensors": size,
    }


def embedder(architecture: str, model_type: str, size: int = GB, **config: Any) -> dict[str, Content]:
    """A sentence-transformers folder around an encoder."""
    return {
        **encoder(architecture, model_type, size, **config),
        "modules.json": POOLED,
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
    }


def labels(count: int) -> dict[str, Any]:
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(count)}}


EMBEDDERS = [
    Row("sentence-transformers/all-MiniLM-L6-v2", {
            **embedder("BertModel", "bert", 90_868_376, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                       max_position_embeddings=512),
            "sentence_bert_config.json": {"max_seq_length": 256}, "pytorch_model.bin": 1000, "tf_model.h5": 1000,
            "onnx/model.onnx": 1000}, Task.EMBED, reason="modules.json", engine="transformers",
        facts={"max_model_len": 256, "hidden_size": 384, "head_dim": 32, "weights_bytes": 90_868_376}),
    Row("Qwen/Qwen3-Embedding-0.6B", {**chat("Qwen3ForCausalLM", "qwen3", max_position_embeddings=32768),
            "modules.json": POOLED, "1_Pooling/config.json": {"pooling_mode_lasttoken": True},
            "config_sentence_transformers.json": {"prompts": {"query": "Instruct: "}}}, Task.EMBED,
        reason="modules.json", facts={"max_model_len": 32768}),
    Row("Qwen/Qwen3-Embedding-4B-bare", chat("Qwen3ForCausalLM", "qwen3"), Task.EMBED,
        reason="name: an embedding model"),
    Row("BAAI/bge-m3", {"config.json": {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"},
            "pytorch_model.bin": 2 * GB, "colbert_linear.pt": 1000, "sparse_linear.pt": 1000, **TOKENIZER,
            "modules.json": POOLED, "1_Pooling/config.json": {}}, Task.EMBED, UNUSABLE, reason="only pickle weights"),
    Row("BAAI/bge-m3-allowed", {"config.json": {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"},
            "pytorch_model.bin": 2 * GB, **TOKENIZER, "modules.json": POOLED, "1_Pooling/config.json": {}}, Task.EMBED,
        overrides=ModelOverrides(allow_pickle=True)),
    Row("BAAI/bge-m3-safetensors", {**embedder("XLMRobertaModel", "xlm-roberta", max_position_embeddings=8194),
            "sentence_bert_config.json": {"max_seq_length": 8192}, "colbert_linear.pt": 1000}, Task.EMBED,
        facts={"max_model_len": 8192}),
    Row("BAAI/bge-small-en-v1.5", embedder("BertModel", "bert", max_position_embeddings=512), Task.EMBED),
    Row("intfloat/multilingual-e5-large", embedder("XLMRobertaModel", "xlm-roberta", max_position_embeddings=514),
        Task.EMBED, facts={"max_model_len": 512}),
    Row("intfloat/multilingual-e5-large-instruct", embedder("XLMRobertaModel", "xlm-roberta"), Task.EMBED),
    Row("intfloat/e5-mistral-7b-instruct", {**encoder("MistralModel", "mistral"), "modules.json": POOLED,
            "1_Pooling/config.json": {}, "lora/adapter_config.json": {}}, Task.EMBED),
    Row("intfloat/e5-small-bare", encoder("BertModel", "bert"), Task.EMBED, reason="an encoder without a head"),
    Row("thenlper/gte-large", embedder("BertModel", "bert"), Task.EMBED),
    Row("Alibaba-NLP/gte-modernbert-base", embedder("ModernBertModel", "modernbert", max_position_embeddings=8192),
        Task.EMBED),
    Row("Alibaba-NLP/gte-multilingual-base", embedder("NewModel", "new", auto_map={
            "AutoConfig": NEW + "configuration.NewConfig", "AutoModel": NEW + "modeling.NewModel"}), Task.EMBED,
        UNUSABLE,
        reason="model_type new is not built into transformers"),
    Row("Alibaba-NLP/gte-Qwen2-1.5B-instruct", {**embedder("Qwen2ForCausalLM", "qwen2", auto_map={
            "AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}),
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [
                "tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]}}}, Task.EMBED, UNUSABLE,
        reason="Qwen2TokenizerFast"),
    Row("jinaai/jina-embeddings-v3", {**embedder("XLMRobertaModel", "xlm-roberta", auto_map={
            "AutoConfig": JINA_IMPL + "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": JINA_IMPL + "modeling_lora.XLMRobertaLoRA"}),
            "modules.json": [{"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer"},
                             *POOLED[1:]]}, Task.EMBED, UNUSABLE, reason="module type custom_st.Transformer"),
    Row("jinaai/jina-embeddings-v2-base-en", embedder("JinaBertForMaskedLM", "bert", auto_map={
            "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
            "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"}), Task.EMBED, UNUSABLE,
        reason="names AutoConfig JinaBertConfig, which is not transformers' own for model_type bert"),
    Row("nomic-ai/nomic-embed-text-v1.5", embedder("NomicBertModel", "nomic_bert", n_positions=8192, n_embd=768,
            n_layer=12, n_head=12, auto_map={
                "AutoConfig": NOMIC + "configuration_hf_nomic_bert.NomicBertConfig",
                "AutoModel": NOMIC + "modeling_hf_nomic_bert.NomicBertModel",
                "AutoModelForMaskedLM": NOMIC + "modeling_hf_nomic_bert.NomicBertForPreTraining"}), Task.EMBED,
        reason="auto_map is not needed", facts={"hidden_size": 768, "num_layers": 12}),
    Row("nomic-ai/nomic-embed-text-v2-moe", embedder("NomicBertModel", "nomic_bert", num_experts=8, auto_map={
            "AutoConfig": NOMIC + "configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": NOMIC + "modeling_hf_nomic_bert.NomicBertModel"}), Task.EMBED, UNUSABLE,
        reason="num_experts 8, which transformers' own NomicBertConfig does not know"),
    Row("minishlab/potion-base-8M", {"config.json": {"architectures": ["StaticModel"], "model_type": "model2vec"},
            "model.safetensors": 7000, **TOKENIZER, "modules.json": [
                {"idx": 0, "name": "0", "path": ".", "type": ST + "StaticEmbedding"}, POOLED[2]]}, Task.EMBED),
    Row("minishlab/potion-without-modules", encoder("StaticModel", "model2vec"), Task.EMBED, UNUSABLE,
        reason="model_type model2vec is not known to transformers"),
    Row("Qwen/Qwen3-VL-Embedding-2B", encoder("Qwen3VLForConditionalGeneration", "qwen3_vl"), Task.UNSUPPORTED,
        UNUSABLE, reason="needs a modules.json that says how it embeds"),
    Row("someone/bidirectional-embedding", encoder("Qwen3ForCausalLM", "qwen3", is_causal=False), Task.EMBED,
        reason="the mean of the token vectors"),
    Row("sentence-transformers/with-a-cnn", {**embedder("BertModel", "bert"), "modules.json": [
            *POOLED[:1], {"idx": 1, "name": "1", "path": "1_CNN", "type": ST + "CNN"}]}, Task.UNSUPPORTED, UNUSABLE,
        reason="modules.json: CNN"),
    Row("mixedbread-ai/mxbai-embed-large-v1", {**embedder("BertModel", "bert"), "gguf/mxbai.gguf": 1000}, Task.EMBED),
    Row("nomic-ai/modernbert-embed-base", embedder("ModernBertModel", "modernbert"), Task.EMBED),
    Row("google/embeddinggemma-300m", {**encoder("Gemma3TextModel", "gemma3_text", max_position_embeddings=2048),
            "modules.json": [*POOLED[:2], {"idx": 2, "name": "2", "path": "2_Dense", "type": ST + "Dense"}],
            "1_Pooling/config.json": {}, "2_Dense/config.json": {}, "2_Dense/model.safetensors": 9000}, Task.EMBED,
        facts={"weights_bytes": GB + 9000}),
    Row("sentence-transformers/LaBSE-pickled-dense", {**embedder("BertModel", "bert"),
            "modules.json": [*POOLED[:2], {"idx": 2, "name": "2", "path": "2_Dense", "type": ST + "Dense"}],
            "2_Dense/config.json": {}, "2_Dense/pytorch_model.bin": 1000}, Task.EMBED, UNUSABLE,
        reason="2_Dense: only pickle weights (pytorch_model.bin)"),
    Row("sentence-transformers/old-layout", {
            "modules.json": [{"idx": 0, "name": "0", "path": "0_Transformer", "type": ST + "Transformer"}, POOLED[1]],
            "0_Transformer/config.json": {"architectures": ["DistilBertModel"], "model_type": "distilbert"},
            "0_Transformer/vocab.txt": "x", "0_Transformer/model.safetensors": 7000, "1_Pooling/config.json": {}},
        Task.EMBED, facts={"weights_bytes": 7000, "architecture": "DistilBertModel"}),
    Row("sentence-transformers/static-retrieval-mrl-en-v1", {
            "modules.json": [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": ST + "StaticEmbedding"}],
            "0_StaticEmbedding/model.safetensors": 5000, "0_StaticEmbedding/tokenizer.json": {}}, Task.EMBED),
    Row("google-bert/bert-base-uncased", encoder("BertForMaskedLM", "bert"), Task.UNSUPPORTED, UNUSABLE,
        reason="trained to fill in words"),
    Row("answerdotai/ModernBERT-base", encoder("ModernBertForMaskedLM", "modernbert"), Task.UNSUPPORTED, UNUSABLE,
        reason="set task: embed"),
    Row("answerdotai/ModernBERT-base-as-embedder", encoder("ModernBertForMaskedLM", "modernbert"), Task.EMBED,
        reason="configuration: task embed", overrides=ModelOverrides(task=Task.EMBED)),
]  # fmt: skip

RERANKERS = [
    Row("BAAI/bge-reranker-v2-m3", encoder("XLMRobertaForSequenceClassification", "xlm-roberta", **labels(1),
            max_position_embeddings=8194), Task.RERANK, reason="with one label → rerank", engine="transformers",
        facts={"max_model_len": 8192}),
    Row("BAAI/bge-reranker-base", encoder("XLMRobertaForSequenceClassification", "xlm-roberta", **labels(1)),
        Task.RERANK),
    Row("BAAI/bge-reranker-v2-gemma", chat("GemmaForCausalLM", "gemma"), Task.RERANK,
        reason="scored as bge-reranker-v2-gemma is published", facts={"method": Method.BGE_RERANKER}),
    Row("BAAI/bge-reranker-v2-minicpm-layerwise", chat("LayerWiseMiniCPMForCausalLM", "minicpm", auto_map={
            "AutoConfig": "configuration_minicpm_reranker.LayerWiseMiniCPMConfig"}), Task.RERANK, UNUSABLE,
        reason="model_type minicpm is not built into transformers"),
    Row("Qwen/Qwen3-Reranker-0.6B", chat("Qwen3ForCausalLM", "qwen3"), Task.RERANK,
        reason="scored as Qwen3-Reranker is published", facts={"method": Method.QWEN3_RERANKER}),
    Row("Qwen/Qwen3-Reranker-0.6B-integrated", {**chat("Qwen3ForCausalLM", "qwen3"), "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": "1_LogitScore",
             "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}],
            "1_LogitScore/config.json": {"true_token_id": 9693, "false_token_id": 2152}}, Task.RERANK,
        reason="modules.json: a cross-encoder", facts={"method": None}),
    Row("ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b", chat("Qwen3ForCausalLM", "qwen3"), Task.RERANK,
        UNUSABLE, reason="if it was trained as those were", facts={"method": None}),
    Row("tomaarsen/Qwen3-Reranker-0.6B-seq-cls", chat("Qwen3ForSequenceClassification", "qwen3", **labels(1)),
        Task.RERANK),
    Row("cross-encoder/ms-marco-MiniLM-L6-v2", encoder("BertForSequenceClassification", "bert", **labels(1),
            sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}), Task.RERANK),
    Row("cross-encoder-testing/seq-cls-with-modules", {**encoder("BertForSequenceClassification", "bert", **labels(1)),
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.models.Transformer"}],
            "config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, Task.RERANK,
        reason="with one label → rerank"),
    Row("jinaai/jina-reranker-v2-base-multilingual", encoder("XLMRobertaForSequenceClassification", "xlm-roberta",
            num_labels=1, auto_map={
                "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
                "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification"}),
        Task.RERANK, UNUSABLE, reason="XLMRobertaFlashConfig"),
    Row("jinaai/jina-reranker-v3", encoder("JinaForRanking", "qwen3",
            auto_map={"AutoModel": "modeling.JinaForRanking"}), Task.RERANK, UNUSABLE, reason="JinaForRanking"),
    Row("jinaai/jina-reranker-v1-tiny-en", encoder("BertForSequenceClassification", "bert", num_labels=1, auto_map={
            "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig"}), Task.RERANK, UNUSABLE,
        reason="JinaBertConfig"),
    Row("mixedbread-ai/mxbai-rerank-base-v1", encoder("DebertaV2ForSequenceClassification", "deberta-v2", **labels(1)),
        Task.RERANK),
    Row("mixedbread-ai/mxbai-rerank-base-v2", chat("Qwen2ForCausalLM", "qwen2"), Task.RERANK, UNUSABLE,
        reason="use its sequence-classification version"),
    Row("someone/rerank-like-qwen3", chat("Qwen2ForCausalLM", "qwen2"), Task.RERANK,
        reason="configuration: method qwen3_reranker",
        overrides=ModelOverrides(engine_args={"method": "qwen3_reranker"})),
    Row("someone/yes-or-no", chat("Qwen3ForCausalLM", "qwen3"), Task.RERANK, reason="method qwen3_reranker",
        overrides=ModelOverrides(task=Task.RERANK), facts={"method": Method.QWEN3_RERANKER}),
    Row("Alibaba-NLP/gte-reranker-modernbert-base", encoder("ModernBertForSequenceClassification", "modernbert",
            **labels(1)), Task.RERANK),
    Row("Alibaba-NLP/gte-multilingual-reranker-base", encoder("NewForSequenceClassification", "new", **labels(1),
            auto_map={"AutoConfig": NEW + "configuration.NewConfig"}), Task.RERANK, UNUSABLE,
        reason="trust_remote_code: true"),
]  # fmt: skip

OTHERS = [
    Row("cardiffnlp/twitter-roberta-base-sentiment-latest", encoder("RobertaForSequenceClassification", "roberta",
            id2label={"0": "negative", "1": "neutral", "2": "positive"}), Task.CLASSIFY,
        reason="with 3 labels → classify", engine="transformers"),
    Row("cross-encoder/nli-deberta-v3-base", encoder("DebertaV2ForSequenceClassification", "deberta-v2", **labels(3)),
        Task.CLASSIFY, reason="with 3 labels"),
    Row("distilbert/sst2-without-labels", encoder("DistilBertForSequenceClassification", "distilbert"), Task.CLASSIFY,
        reason="2 labels"),
    Row("SamLowe/roberta-base-go_emotions", encoder("RobertaForSequenceClassification", "roberta", **labels(28)),
        Task.CLASSIFY, reason="28 labels"),
    Row("dslim/bert-base-NER", encoder("BertForTokenClassification", "bert", **labels(9)), Task.CLASSIFY, UNUSABLE,
        reason="no engine serves token classifiers yet"),
    Row("openai/clip-vit-base-patch32", encoder("CLIPModel", "clip"), Task.UNSUPPORTED, UNUSABLE,
        reason="no engine serves image models yet"),
    Row("sentence-transformers/clip-ViT-B-32", {"modules.json": [
            {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": ST + "CLIPModel"}],
            "0_CLIPModel/config.json": {"architectures": ["CLIPModel"], "model_type": "clip"},
            "0_CLIPModel/model.safetensors": 500}, Task.UNSUPPORTED, UNUSABLE, reason="CLIP"),
    Row("google/siglip2-base-patch16-224", encoder("SiglipModel", "siglip"), Task.UNSUPPORTED, UNUSABLE),
    Row("openai/whisper-small", encoder("WhisperForConditionalGeneration", "whisper", is_encoder_decoder=True),
        Task.UNSUPPORTED, UNUSABLE, reason="no engine serves audio models yet"),
    Row("google/flan-t5-base", encoder("T5ForConditionalGeneration", "t5", is_encoder_decoder=True), Task.UNSUPPORTED,
        UNUSABLE, reason="encoder-decoder"),
    Row("facebook/bart-large-cnn", encoder("BartForConditionalGeneration", "bart"), Task.UNSUPPORTED, UNUSABLE,
        reason="encoder-decoder"),
    Row("naver/splade-v3", {**encoder("BertForMaskedLM", "bert"), "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.sparse_encoder.models.MLMTransformer"},
            {"idx": 1, "name": "1", "path": "1_SpladePooling",
             "type": "sentence_transformers.sparse_encoder.models.SpladePooling"}]}, Task.EMBED,
        reason="a sparse encoder (SPLADE)", facts={"method": Method.SPARSE}),
    Row("naver/splade-cocondenser-ensembledistil", encoder("BertForMaskedLM", "bert"), Task.EMBED,
        reason="name: a sparse encoder", facts={"method": Method.SPARSE}),
    Row("colbert-ir/colbertv2.0", encoder("HF_ColBERT", "bert"), Task.EMBED, reason="one vector for each token",
        facts={"method": Method.MULTI_VECTOR}),
    Row("someone/colbert-backbone", encoder("BertModel", "bert"), Task.UNSUPPORTED, UNUSABLE,
        reason="there is no modules.json that says how its vectors are made"),
    Row("lightonai/GTE-ModernColBERT-v1", {**encoder("ModernBertModel", "modernbert"), "modules.json": [
            POOLED[0], {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"}],
            "1_Dense/config.json": {}, "1_Dense/model.safetensors": 9000}, Task.EMBED, reason="late interaction",
        facts={"method": Method.MULTI_VECTOR}),
    Row("someone/pylate-with-code", {**encoder("ModernBertModel", "modernbert"), "modules.json": [
            POOLED[0], {"idx": 1, "name": "1", "path": "", "type": "pylate.models.Other"}]}, Task.EMBED, UNUSABLE,
        reason="module type pylate.models.Other"),
    Row("someone/pooling-without-modules", {**encoder("BertModel", "bert"),
            "1_Pooling/config.json": {"pooling_mode_cls_token": True}}, Task.EMBED,
        reason="1_Pooling says how token vectors become one"),
    Row("opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill", {
            **encoder("DistilBertForMaskedLM", "distilbert", 4000, max_position_embeddings=512), **OPENSEARCH,
            "query_0_SparseStaticEmbedding/config.json": {}, "query_0_SparseStaticEmbedding/model.safetensors": 1000,
            "document_1_SpladePooling/config.json": {}}, Task.EMBED, reason="a sparse encoder (SPLADE)",
        facts={"method": Method.SPARSE, "max_model_len": 512, "weights_bytes": 5000}),
    Row("someone/router-with-code", {**encoder("BertModel", "bert"), "modules.json": ROUTER, "router_config.json": {
            "types": {"": "theirs.Module"}, "structure": {"query": [""], "document": [""]}, "parameters": {}}},
        Task.EMBED, UNUSABLE, reason="module type theirs.Module"),
    Row("someone/router-of-images", {"modules.json": ROUTER, "router_config.json": {
            "types": {"text_0_Transformer": ST + "Transformer", "image_0_Transformer": ST + "Transformer"},
            "structure": {"text": ["text_0_Transformer"], "image": ["image_0_Transformer"]}, "parameters": {}},
            "text_0_Transformer/config.json": {}, "text_0_Transformer/model.safetensors": 4000,
            "text_0_Transformer/tokenizer.json": {}, "image_0_Transformer/model.safetensors": 4000},
        Task.UNSUPPORTED, UNUSABLE, reason="no engine serves routed models but"),
    Row("vidore/colqwen2-v1.0-hf", encoder("ColQwen2ForRetrieval", "colqwen2"), Task.UNSUPPORTED, UNUSABLE,
        reason="late interaction over images"),
    Row("stabilityai/stable-diffusion-xl-base-1.0", {"model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
            "unet/config.json": {}, "vae/config.json": {}}, Task.UNSUPPORTED, UNUSABLE, reason="diffusers pipeline"),
    Row("someone/brand-new-architecture", encoder("FooForBar", "foo"), Task.UNSUPPORTED, UNUSABLE, reason="FooForBar"),
]  # fmt: skip

BROKEN = [
    Row("broken/empty", {}, Task.UNSUPPORTED, INCOMPLETE, reason="the folder is empty"),
    Row("broken/config-only", {"config.json": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}},
        Task.COMPLETION, INCOMPLETE, reason="no weights yet"),
    Row("broken/weights-only", {"model.safetensors": 500}, Task.UNSUPPORTED, INCOMPLETE, reason="no config.json yet"),
    Row("broken/tokenizer-only", {**TOKENIZER}, Task.UNSUPPORTED, INCOMPLETE, reason="no config.json yet"),
    Row("broken/no-tokenizer", {k: v for k, v in chat("LlamaForCausalLM", "llama").items() if k != "tokenizer.json"},
        Task.CHAT, INCOMPLETE, reason="no tokenizer yet"),
    Row("broken/half-tokenizer", {**chat("LlamaForCausalLM", "llama"), "tokenizer.json": '{"model": {"vocab": {"a'},
        Task.CHAT, INCOMPLETE, reason="tokenizer.json breaks off"),
    Row("broken/missing-shards", {
            k: v for k, v in chat("LlamaForCausalLM", "llama").items() if k != "model.safetensors"}
            | sharded(4, 4 * GB, missing=(2, 3)), Task.CHAT, INCOMPLETE,
        reason="2 of 4 shards are missing: model-00002-of-00004.safetensors, model-00003-of-00004.safetensors"),
    Row("broken/shards-before-index", {"config.json": {"architectures": ["LlamaForCausalLM"]}, **TOKENIZER,
            "tokenizer_config.json": CHATML, "model-00001-of-00002.safetensors": 500}, Task.CHAT, INCOMPLETE,
        reason="1 of 2 shards are missing: model-00002-of-00002.safetensors"),
    Row("broken/zero-byte-weights", {**chat("LlamaForCausalLM", "llama"), "model.safetensors": b""}, Task.CHAT,
        INCOMPLETE,
        reason="model.safetensors is empty"),
    Row("broken/reserved-weights", {**chat("LlamaForCausalLM", "llama"), "model.safetensors": bytes(4096)}, Task.CHAT,
        INCOMPLETE, reason="begins with zeros"),
    Row("broken/lfs-pointer", {**chat("LlamaForCausalLM", "llama"), "model.safetensors":
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"}, Task.CHAT, INCOMPLETE,
        reason="git lfs pull"),
    Row("broken/not-safetensors", {**chat("LlamaForCausalLM", "llama"), "model.safetensors": b"<html>404</html>" * 99},
        Task.CHAT, UNUSABLE, reason="is not a safetensors file"),
    Row("broken/part-file", {**chat("LlamaForCausalLM", "llama"), "model-00002.safetensors.part": 10}, Task.CHAT,
        INCOMPLETE, reason="model-00002.safetensors.part is a download or copy under way"),
    Row("broken/incomplete-file", {**chat("LlamaForCausalLM", "llama"), "abc.incomplete": 10}, Task.CHAT, INCOMPLETE),
    Row("broken/aria2", {**chat("LlamaForCausalLM", "llama"), "model.safetensors.aria2": 10}, Task.CHAT, INCOMPLETE),
    Row("broken/rsync", {**chat("LlamaForCausalLM", "llama"), ".tokenizer.json.Ab3dE9": 10}, Task.CHAT, INCOMPLETE,
        reason="rsync"),
    Row("broken/hf-download", {**chat("LlamaForCausalLM", "llama"),
            ".cache/huggingface/download/abc.incomplete": 10}, Task.CHAT, INCOMPLETE, reason="hf download"),
    Row("broken/empty-config", {"config.json": "", **TOKENIZER, "model.safetensors": 500}, Task.UNSUPPORTED, INCOMPLETE,
        reason="config.json is empty"),
    Row("broken/cut-config", {"config.json": '{"architectures": ["Llama', "model.safetensors": 500}, Task.UNSUPPORTED,
        INCOMPLETE, reason="config.json breaks off in the middle"),
    Row("broken/garbage-config", {"config.json": b"\x93NUMPY\xff\xfe", "model.safetensors": 500}, Task.UNSUPPORTED,
        UNUSABLE, reason="config.json is not valid JSON"),
    Row("broken/list-config", {"config.json": [1, 2], "model.safetensors": 500}, Task.UNSUPPORTED, UNUSABLE,
        reason="should hold a JSON object"),
    Row("broken/tensorflow-only", {"config.json": {"architectures": ["BertModel"], "model_type": "bert"}, **TOKENIZER,
            "tf_model.h5": 500}, Task.EMBED, UNUSABLE, reason="another framework"),
    Row("broken/half-dense", {**embedder("BertModel", "bert"),
            "modules.json": [*POOLED[:2], {"idx": 2, "name": "2", "path": "2_Dense", "type": ST + "Dense"}],
            "2_Dense/config.json": {}, "2_Dense/model.safetensors": b"\x60"}, Task.EMBED, INCOMPLETE,
        reason="2_Dense/model.safetensors is half-copied"),
    Row("broken/no-pooling-yet", {k: v for k, v in embedder("BertModel", "bert").items() if "Pooling" not in k},
        Task.EMBED, INCOMPLETE, reason="1_Pooling/config.json is missing"),
    Row("broken/pooling-under-way", {**encoder("BertModel", "bert"), "1_Pooling/README.md": "x"}, Task.EMBED,
        INCOMPLETE, reason="1_Pooling/config.json is missing"),
    Row("broken/plain-base", {**chat("LlamaForCausalLM", "llama"), "tokenizer_config.json": PLAIN}, Task.COMPLETION),
]  # fmt: skip

ROWS = [*EMBEDDERS, *RERANKERS, *OTHERS, *BROKEN]
