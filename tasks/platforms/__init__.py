"""The platforms a run can happen on, behind one port."""
