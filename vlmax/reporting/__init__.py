"""What a run writes for people: console, metrics files, pictures."""
