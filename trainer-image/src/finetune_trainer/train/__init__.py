"""Stage train: one loop over all ranks, transactional checkpoints, one artifact."""
