"""What all commands share: options, the user's errors, output folders, logits files, processes."""
