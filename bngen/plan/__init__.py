"""What has been decided of a program, as data: kernels, layouts, places."""
