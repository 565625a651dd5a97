"""Where text comes from, how it becomes tokens, and which of them a batch has."""
