"""The paper's equations, and rules of ours beside them, on arrays. Imports nothing of anofpdm."""
