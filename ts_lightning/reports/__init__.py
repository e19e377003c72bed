"""What people look at: drawings, pages, the retention certificate."""
