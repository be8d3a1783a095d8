/* What NVRTC has no header for: it knows size_t by itself. */
