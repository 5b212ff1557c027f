"""Vision backbones behind one contract: several views in, pooled and region features out."""
