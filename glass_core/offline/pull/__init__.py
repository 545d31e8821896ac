"""`glass pull`: from a name, an HF folder or a GGUF file to a prepared checkpoint."""
