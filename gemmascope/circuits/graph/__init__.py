"""Attribution graphs: targets go down the layers as rows of one reversed pass, and meet what wrote to the stream."""
