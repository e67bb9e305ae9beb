"""Run a model with torch, CTranslate2, ONNX Runtime or llama.cpp, behind one interface."""
