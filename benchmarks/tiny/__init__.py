"""A tiny world to train in: tasks on words, a tokenizer, and the training of a very small Llama."""
