output "addresses" {
  description = "Private address of each node."
  value       = { for name, node in aws_instance.node : name => node.private_ip }
}
