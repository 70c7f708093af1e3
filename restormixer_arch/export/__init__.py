"""Use the network in other programs: ONNX, spandrel and ComfyUI."""
