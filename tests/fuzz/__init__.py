"""Damaged and hostile inputs: each is right, or refused in one line, in time and memory."""
