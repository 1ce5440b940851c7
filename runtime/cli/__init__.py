"""Arguments, folders and progress of the commands. Only entry points import it; it imports all."""
