"""Convert public datasets, as they are distributed, to what the option files expect."""
