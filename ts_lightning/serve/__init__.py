"""The local page: click a point, drag a box, draw a polygon, and ask."""
