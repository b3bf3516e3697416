"""Cost, memory, topology and collectives before any hardware is used."""
