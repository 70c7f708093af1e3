"""The network in other programs: ONNX, spandrel, ComfyUI."""
