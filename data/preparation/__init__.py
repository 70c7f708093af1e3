"""Public datasets, as they are distributed, turned into what the option files expect."""
