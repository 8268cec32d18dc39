"""From records to sharded batches: sources, images, tokenizers, the pipeline."""
