"""A judge of what passes between phiflow and Azure Machine Learning, by Microsoft's own descriptions and recordings."""
