"""The product's story, live in a terminal, on real parts, judged from outside."""
