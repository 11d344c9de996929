"""What commands and events set going: mailboxes, processes over two streams, publication."""
