"""From anomaly map to mask: appendix E, and what can be off beyond it. Imports method/."""
