"""What code is generated for: as users write it, and as schedules must know it."""
