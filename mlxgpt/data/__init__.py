"""From files to batches: documents, token shards, and what the model is shown."""
