"""Where records are kept: interchangeable stores."""
