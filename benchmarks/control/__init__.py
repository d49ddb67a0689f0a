"""What a model can be told, and what follows of it: attributes, masks, edits, guidance, sequences."""
