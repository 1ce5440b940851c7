"""Ground floor of anofpdm: volume -> slices -> forward process -> mask. No torch, ever."""
