"""Pictures of the course. `style` is the look that all of them share; every other module is one picture."""
