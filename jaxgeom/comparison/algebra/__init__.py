"""Dense linear algebra at float64 grade: matrices, their spectra and leading directions, by LAPACK or on a device."""
