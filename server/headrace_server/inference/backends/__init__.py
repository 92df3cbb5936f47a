"""What runs programs: one module for each runtime, behind one small protocol."""
