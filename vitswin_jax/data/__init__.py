"""Where images come from and how they become batches; numpy only, JAX is never imported here."""
