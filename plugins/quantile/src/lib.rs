//! Normal-float and empirical quantile codebooks.
