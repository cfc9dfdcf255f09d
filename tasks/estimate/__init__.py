"""What a run takes: tokens, steps, memory, time and money, before it begins and beside what it took."""
