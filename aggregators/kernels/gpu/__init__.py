"""The backend in Triton, for rows on a GPU: `backend` has its functions, `tiles` runs on the device."""
