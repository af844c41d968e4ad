"""What computes a model: on a CPU torch, ONNX Runtime or OpenVINO, on a GPU torch, and in which precision.

`candidates` says what may; `choosing` decides at the first load of a model on this machine, by `measuring`; `kept`
remembers it; `bodies` puts the chosen library in the place of the transformer inside the model's first module, so that
pooling, normalization and heads stay sentence-transformers' own. Nothing here imports a library before it is needed.
"""
