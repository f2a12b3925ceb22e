"""Training, section 4 of the report: corpus, tokenizer, token cache, schedule, optimizer, loop, checkpoints."""
