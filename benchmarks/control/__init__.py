"""What a model can be conditioned on, and whether its scans follow: attributes, text, masks, edits, guidance, sequences."""
