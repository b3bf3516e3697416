"""Sources of images, and batches from them; numpy only, JAX is never imported here."""
