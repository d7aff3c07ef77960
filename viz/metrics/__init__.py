"""One definition per metric; measure.py reports what each module's measure() returns."""
