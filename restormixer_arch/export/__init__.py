"""RestorMixer for other tools: as safetensors with its options inside, and as an ONNX file."""
