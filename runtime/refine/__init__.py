"""Beyond the paper, from anomaly map to mask; each part can be off. Imports method/."""
