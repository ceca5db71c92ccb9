"""The embedded model server: OpenAI's API over transformers and PEFT, on CPU or CUDA."""
