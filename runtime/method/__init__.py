"""The paper, one file a section: equations and rules on arrays. Imports nothing of the house."""
