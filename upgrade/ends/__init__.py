"""Where people keep their galleries: what the upgrade reads from, and what it pushes to and switches."""
