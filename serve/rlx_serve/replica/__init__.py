"""What a process holds and runs: variants, text engines, their memory."""
