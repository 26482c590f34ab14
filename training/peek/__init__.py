"""How the embedded model `peek` is made: data, tokenizer, network, training and export."""
