"""`vitswin train --minutes`: a recipe for this data, this machine and the given time."""
